"""Oracles: a float64 decoder written from the papers' formulas, and tiny random models to run it on."""
