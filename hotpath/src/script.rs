pub const CLAIM_LUA: &str = include_str!("../lua/claim.lua");
pub const CROWD_LUA: &str = include_str!("../lua/crowd.lua");
pub const LEASE_LUA: &str = include_str!("../lua/lease.lua");
pub const FACTS_LUA: &str = include_str!("../lua/facts.lua");
