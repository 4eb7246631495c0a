"""Engines: programs of others that answer in a model's place, started, watched and stopped by this one.

``programs`` says which there are and how each is started, ``watcher`` is the small process between us
and one of them, ``process`` its life, ``servers`` those of one model, ``kept`` how long they stay,
``weights`` what they are given to read, ``managed`` the LLM that is made of all that.
"""
