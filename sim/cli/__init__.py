"""The `clustersim` command: one file a subcommand, each with TEXT, EXAMPLES, `add(parser)` and `main(args) -> int`."""
