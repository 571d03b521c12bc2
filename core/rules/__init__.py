"""The rule book: pure functions. No clock, no I/O, no floats."""
