"""The engine of Ulterior: which features of a language model act, and which only discuss. It draws nothing."""
