"""Put into the test machine's Pythons: signals that make a process hang or eat memory."""

import signal
import time


def hang(number: int, frame: object) -> None:
    time.sleep(3600)


def eat_memory(number: int, frame: object) -> None:
    eaten = []
    while True:
        eaten.append(b"x" * (64 << 20))


signal.signal(signal.SIGUSR1, hang)
signal.signal(signal.SIGUSR2, eat_memory)
