"""What a registry does: the use cases of a noun are the verbs in its file. No HTTP, no SQL."""
