#[pyo3::pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        m.add("CLAIM_LUA", crate::script::CLAIM_LUA)?;
        m.add("CROWD_LUA", crate::script::CROWD_LUA)?;
        m.add("LEASE_LUA", crate::script::LEASE_LUA)?;
        m.add("FACTS_LUA", crate::script::FACTS_LUA)?;
        m.add("BUILD_PROFILE", if cfg!(debug_assertions) { "debug" } else { "release" })
    }
}
