"""From the command line to runs: the schema, composing, what makes no sense. The only room that knows Hydra."""
