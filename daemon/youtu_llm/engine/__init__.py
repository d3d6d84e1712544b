"""The engine process: sequences, pages, scheduler, runner, core. It never sees text."""
