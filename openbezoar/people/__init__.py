"""People compare two checkpoints' answers without knowing whose they are.

``ballots`` says what is compared, ``votes`` keeps the file of votes and the way through the
ballots, ``outcome`` what comes of the votes, ``server`` shows ``page/`` on the loopback.
"""
