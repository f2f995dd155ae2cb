"""The `minglm` command: one file a subcommand, each a `Command` of `minglm.cli.main`."""
