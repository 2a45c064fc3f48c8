"""The command line: flags become the mapping of a job file, and nothing else.

One module a verb, with its `command`; a new one is such a module and its name in `main.VERBS`. `options` are the flags
that verbs share, `values` reads their text, `mapping` makes a job of them, `ending` says how an error ends a command.
"""
