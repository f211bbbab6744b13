"""Says hello, to show that a synchronisation has arrived."""


def main() -> None:
    """Print one line that names the version and the installer it came from."""
    print("Hello from Lockstep 1.0.0, installed as a Python wheel.")
