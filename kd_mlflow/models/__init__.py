"""Networks by name, their taps, and the folder and programs they are written to."""
