"""The product. It knows no HTTP: `api` is one of its callers, the command line another.

The floors, from the top; a floor may import what is below it (pyproject.toml holds that).

commands and processes
  __main__        the command line: reads the environment, calls one function a command
  supervisor      `up`: starts everything on one machine and keeps it running
  recover         gives a restored PostgreSQL back what Redis kept
  reconciler      the write-behind of fast sales: Redis's stream into the ledger, and settling
  worker          the clock's hand: opens, closes, grows and re-arms sales; tidies up
  transfers       `import` and `export`: vouchers from and into a file
  demo_data       `demo-data`: a believable year in a second project
  forwarding      `listen` and `trigger`: events for a developer's own machine
  doctor          says whether this set-up can keep the promise
  verifications   looks at the books again and again, for /metrics
  verify          proves the books
  verify_redis      … against Redis
  verify_history    … against what clients were told
  demo            the demo project of a first start
  local           the embedded PostgreSQL and Valkey

operations
  live            what happens, told as it happens: one tail a process
  deletions       deleted projects: sales closed, all settled, then nothing left
  redeemer        the one way in for a redeem or a claim, whoever decides it
  plain_redeems   … and what the compiled doors take and answer by themselves
  qualifications  what a customer can get for a cart
  holds           a use kept for a checkout, for some minutes
  checkouts       redeeming what goes beyond plain terms, one code or several
  validations     would a redemption work? taking nothing
  quotes          pricing what goes beyond plain terms: order, rules, budgets
  crowds          a sold-out voucher's crowd, answered from Redis
  sale_checks     what a sale depends on before it opens, and what its books say afterwards
  flash_sales     sales: make, show, open, pause, close, change
  customer_tokens  what a shop signs so that a browser may claim
  receipts        proof of a fast win, and what becomes of it when Redis lost the win
  releases        what a sale lost, and its release by name
  leases          arm a lease, grow it, let units come back: PostgreSQL first, Redis second
  history         whether PostgreSQL holds what Redis was told it holds: the gate of redeeming
  live_leases     what one API worker knows of the leases that are out
  terms           what a process remembers of vouchers that are being redeemed
  redemptions     pricing, reading and rolling back redemptions
  exports         vouchers out of here: a table, or lines of JSON
  imports         vouchers from elsewhere, with a report
  customers       who redeems: register, export, erase
  erasures        a person forgotten in Redis, before and after the books forget them
  attributions    who came through whom, and whether that is believed
  conversions     a referral comes true: both sides rewarded, or taken back
  referrals       who referred whom, and how far it has come
  referral_rewards  what a referral earns each side, once
  referral_programs  the terms of referrals, and customers' codes
  gift_cards      stored value in a ledger of its own
  liability       what is owed to the holders of gift cards, by day
  reports         what a time holds, streamed: tables, or lines of JSON
  publications    codes of campaigns that are given to customers one by one
  batches         many vouchers at once, or piece by piece
  budgets         how much of campaigns' limits and budgets is gone
  vouchers        vouchers: make, read, edit, switch, validate
  campaigns       campaigns: make, read, edit, move from draft to end
  segments        groups of customers: lists, and rules that are asked anew
  overviews       the project at a glance, and how many vouchers it has
  glances         figures as a start page shows them, from one look
  analytics       figures, kept from events
  detections      the fraud rules at work, behind every redemption, and tried on past days
  fraud           what they found, what was decided about it, and the rules of a project
  blocks          who and what may not redeem
  credentials     passwords changed or forgotten, second factors given and taken
  confirmations   whether an e-mail is the person's
  people          who has an account: sign up, log in
  members         who is in a project, as what, and who was asked
  second_factors  an app's codes, and recovery codes
  deliveries      events on their way to webhooks
  webhooks        who is told of events, and how it is signed
  events          what happened: published in commit order, listed for 30 days
  lookups         throttling of guesses at secret codes and passwords
  tenants         accounts, projects and users that no person made
  projects        make, change, put away
  billing         plans of accounts, and their invoices
  notices         mails to owners: a quota or budget is used
  request_log     what keys asked lately, for who looks for a mistake
  attempts        what was refused, and what was only asked: counted
  usage           calls counted, and where a plan ends
  rate_limits     how often somebody may ask
  sessions        where people are logged in, and what they may do
  api_keys        keys: make, check, cache, revoke
  audit_log       who changed what

floors that know no noun
  shared_commits  concurrent redeems become one commit, of small vouchers together
  idempotency     the stored answers of writes
  signals         what was refused, to whom, written down once a second
  db              PostgreSQL: the only floor that speaks asyncpg; named statements in db/sql
  hot             Redis: the contract of a flash claim, its backends, and what steers a lease
  contexts        where a redemption comes from, as keyed hashes
  seats           a worker's place on its node, and the marks kept there
  shapes          types of request members that several nouns share
  mails           to people, by SMTP or into the log
  passwords       argon2id, a few at once
  outbound        requests to addresses that customers chose
  data_dir        who holds the data directory, and private files in it
  logs            how log lines are written
  processes       child processes that cannot outlive their parent
  rules           the rule book: pure functions, integers, no clock
  errors          every code there is
  ids             public ids, and the id of a win
  settings        what an operator may turn
  endings         ending a background task for certain
"""
