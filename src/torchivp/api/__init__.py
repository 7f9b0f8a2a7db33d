"""The front doors: arguments are checked, and the engine is called."""
