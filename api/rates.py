"""What an answer says of rate limits: the fields of draft-ietf-httpapi-ratelimit-headers."""

from core.rate_limits import Standing


def headers(standing: Standing) -> list[tuple[str, str]]:
    """Return both fields: each policy, and what it leaves; `t` is when there is one more, in s."""
    policies, left = [], []
    for policy, of_it in zip(standing.policies, standing.left, strict=True):
        rate = policy.rate
        policies.append(f'"{policy.name}";q={rate.limit};w={rate.window_s};burst={rate.burst}')
        left.append(f'"{policy.name}";r={of_it.rest};t={-(-of_it.more_in_us // 1_000_000)}')
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(left))]
