"""Gift cards: stored value in a double-entry ledger of its own.

Nothing of the redeem path reads or locks what is in here.

  cards     cards: make, look up, change
  ledger    money onto a card and off it, once for each reference
  vault     codes and PINs, of which only keyed hashes are kept
"""
