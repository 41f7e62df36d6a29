"""Commands of `hamspk`. The module of a command defines `add_arguments(parser)` and `run(arguments) -> exit code`."""
