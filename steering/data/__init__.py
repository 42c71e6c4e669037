"""Files of prompts, read once for fitting and evaluation alike.

`tables` reads the rows of a file, `formats` knows the shapes of our own and of public sets, `questions` holds what is
asked: words and images.
"""
