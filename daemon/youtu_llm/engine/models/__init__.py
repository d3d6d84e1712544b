"""The architectures. `registry` finds one by the config's architectures[0]."""
