pub mod script;
#[cfg(feature = "python")]
mod bindings;
