"""`demo-data`: a believable year of a shop, in a second project of the demo account.

shop      what the shop is, and its calendar of offers
draws     numbers, ids and moments that a seed decides
people    customers
orders    redemptions, roll-backs, limits and budgets
sales     flash sales
cards     gift cards and their ledger
friends   referrals
year      all of it, drawn
writing   … and written, in one commit
"""
