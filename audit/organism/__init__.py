"""How the bundled subject is made: its language, its model, its dictionaries; and the weights that ship."""
