"""The dashboard: pages made of the same operations as the API, with no figure of their own.

Every page is a whole document that works without JavaScript where it is a form or a table; what
scripts add (live figures, charts, copying) comes from this server alone. A write is a form with a
token, answered by a redirect.

what pages share
  visits          who is here, in which project, with which role, and what they may change
  pages           templates, and how amounts, times and states are written
  tables          lists as CSV
  reports         a time as CSV or lines of JSON, without an end
  forms           forms: described once, shown, and read through the API's own gate
  figures         charts, and the tables they are drawn from
  assets          style, scripts and what set-up fetched, by the hash of their text
  routes          the addresses, and errors as pages

the pages
  entry           log in and out, choose a project, light or dark
  letters         what mails lead to: a new password, an invitation
  first_steps     a key, a voucher, and the line that redeems it
  account         a person's own: second factor, password, sessions
  qr_codes        … and the drawing an app reads
  projects        the projects of a person, and another one
  home            the project at a glance
  vouchers        vouchers, batches and their codes
  bulk            many vouchers at once: disable, enable, extend, and take it back
  redemptions     what was redeemed, and giving it back
  campaigns       campaigns and their rules
  rule_rows       a campaign's conditions as rows that read as sentences
  flash_sales     sales: make, steer, watch live, settle
  gift_cards      cards, their ledger, what is owed
  referrals       programs and the review list
  customers       people: history, wallet, erasure
  segments        groups of customers
  fraud           alerts and decisions, rules, the block list
  approvals       what waits for somebody's word
  team            who is in a project
  settings        a project's settings, and putting it away
  billing         the plan, what was used of it, invoices
  requests        what keys asked lately
  events          what happened, and who was told
  webhooks        whom events are told, and what came of it
  developers      keys, the audit log, and where the documentation is
"""
