"""A generated language with a known floor: people, places, things and events, small enough to learn in minutes.

lexicon, names        the words, and slots that several kinds of document share
grammar               templates, slots, states: writing, exact probabilities, judging
story, residents, recall, exercises      the kinds of document
documents             all kinds and their shares
vocabulary            one token a word
held_out              what training never shows

>>> import random
>>> from minglm.data.tiny_world import documents, vocabulary
>>> kind, written = documents.draw(random.Random("0"), {"sums": 1.0})
>>> vocabulary.text_of(written.tokens).splitlines()[0]
'Sums'
"""
