"""Print the lock file of the environment this runs in: one exact version for every package.

Used by `make lock`. Local version labels (such as +cpu) are left out, so that each machine takes the build
of its own index.
"""

from importlib.metadata import distributions

_HEADER = """\
# The one lock file: make, continuous integration and the cluster image install it. Made by `make lock`."""
_LEFT_OUT = {"pip", "sftray"}


def main() -> None:
    pins = {d.metadata["Name"].lower(): d.version.split("+")[0] for d in distributions()}
    print(_HEADER)
    for name in sorted(pins.keys() - _LEFT_OUT):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main()
