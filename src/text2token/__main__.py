"""`python -m text2token` is the same as `text2token`."""

from text2token.cli.main import main

main()
