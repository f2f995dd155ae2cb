"""From a YAML file or a row of a table to checked inputs."""
