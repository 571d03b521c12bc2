from vauchflow_hotpath._native import BUILD_PROFILE, CLAIM_LUA, CROWD_LUA, FACTS_LUA, LEASE_LUA

__all__ = ["BUILD_PROFILE", "CLAIM_LUA", "CROWD_LUA", "FACTS_LUA", "LEASE_LUA"]
