raise ValueError("broken\nmodule")
