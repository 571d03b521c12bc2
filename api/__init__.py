"""HTTP and nothing else: decode, call the operation of the same noun in `core`, encode.

No SQL, no rule, no price is in here; what a status means is in `errors` alone. A handler is under
fifteen lines.

the way in
  __main__        `python -m api`: the listening socket, granian and its workers
  app             which addresses there are, and what becomes of an error
  front           what granian calls: request ids, headers, the way to the hot doors
  bridge          Litestar behind RSGI: one request in, one answer out, whole or piece by piece
  streams         an answer of any length, as fast as the client takes it
  peers           the address of a request, behind proxies, too
  doors           redeem and claim, answered without Litestar
  lifespan        what a worker holds open

what handlers share
  auth            the API key of a request, or the session of a person
  bodies          the one gate for JSON bodies
  idempotency     the Idempotency-Key of a write
  pagination      lists: limit, cursor, filters
  rates           what an answer says of rate limits
  answers         how a result becomes a response
  errors          the only map from error codes to HTTP
  metrics         counters of all workers

people's pages
  dashboard/      /dashboard: the same operations as pages, for people

the nouns
  vouchers        /v1/vouchers
  batches         /v1/vouchers/bulk and /v1/batches
  imports         /v1/vouchers/import
  exports         /v1/exports
  reports         /v1/reports
  live            /v1/live
  campaigns       /v1/campaigns
  customers       /v1/customers
  segments        /v1/segments
  qualifications  /v1/qualifications and /v1/validations
  redemptions     /v1/redemptions
  holds           /v1/holds
  flash_sales     /v1/flash-sales
  gift_cards      /v1/gift-cards
  liability       /v1/gift-cards/liability
  referral_programs  /v1/referral-programs
  referrals       /v1/referrals
  api_keys        /v1/api-keys
  people          /v1/auth
  credentials     /v1/auth/password, …/password-reset, …/second-factor
  projects        /v1/projects
  members         /v1/projects/{id}/members and …/invitations
  events          /v1/events
  audit_log       /v1/audit-log, and as a table
  webhooks        /v1/webhooks
  analytics       /v1/analytics
  fraud           /v1/fraud/rules and …/alerts, /v1/analytics/fraud
  blocks          /v1/fraud/blocks
  usage           /v1/usage
  billing         /v1/billing
  health          /healthz and /readyz
  docs            /openapi.json and /docs
"""
