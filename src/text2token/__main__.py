"""`python -m text2token` is the same as `text2token`."""

from text2token.cli.commands import main

main()
