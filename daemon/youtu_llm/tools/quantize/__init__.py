"""`youtu quantize`: INT4 checkpoints calibrated on text. `run` drives it block by block."""
