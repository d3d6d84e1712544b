"""The few operations the models need: `api` lists them, `reference` is the truth."""
