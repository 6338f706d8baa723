"""What a `PostgresLedger` keeps in the database: tables, and functions that do each step in one round trip."""

from __future__ import annotations

from typing import Final

from graphguard.ledger.records import AMOUNTS, NARROWING

__all__ = ["COUNTED", "METRICS", "VERSION", "functions", "tables"]

VERSION: Final = 1

COUNTED: Final = tuple(f"{kind}_{name}" for kind in ("spent", "held") for name in AMOUNTS)
"""The columns of an account."""

METRICS: Final = {
    "usd": ("nanousd",),
    "tokens": ("input_tokens", "output_tokens"),
    "input_tokens": ("input_tokens",),
    "output_tokens": ("output_tokens",),
    "calls": ("calls",),
}
"""The columns that make up what a budget limits."""

_STEPS: Final = range(1, len(AMOUNTS) + 1)


def tables(schema: str) -> str:
    """The tables; `schema` is quoted already."""
    return f"""
    CREATE TABLE {schema}.version (version integer NOT NULL);
    CREATE TABLE {schema}.accounts (
        scope text PRIMARY KEY COLLATE "C",
        {", ".join(f"{name} bigint NOT NULL DEFAULT 0" for name in COUNTED)}
    ) WITH (fillfactor = 50);
    -- One row an attempt, from its hold to its charge. state is held, charged, assumed or released.
    CREATE TABLE {schema}.attempts (
        number bigint GENERATED ALWAYS AS IDENTITY,
        id text PRIMARY KEY,
        state text NOT NULL,
        call text,
        held_in text[],
        worst bigint[],
        expires double precision,
        charge text,
        scopes text[],
        {", ".join(f"{name} bigint" for name in AMOUNTS)},
        {", ".join(f"{name} text" for name in NARROWING)},
        time double precision
    ) WITH (fillfactor = 70);
    CREATE INDEX ON {schema}.attempts (expires) WHERE state = 'held';
    CREATE INDEX ON {schema}.attempts (thread) WHERE thread IS NOT NULL;
    """


def functions(schema: str) -> str:
    """The functions; `schema` is quoted already.

    Accounts are locked in the order of their names and in no other, and always after the attempt's own row:
    so nobody waits in a circle (facts.md: 43 deadlocks in 3 s without the order, none with it). Accounts that
    are missing are made before any is locked, in the same order.
    """
    arguments = {"schema": schema, "checks": _checks(), **_moves()}
    return "".join(part.format(**arguments) for part in (_LOCK, _MOVE, _HOLD, _SETTLE, _RELEASE))


def _checks() -> str:
    # `room` is the limit less what the call needs and what the claim brings along: see PostgresLedger._hold.
    sums = {
        metric: " + ".join(f"account.{kind}_{name}" for kind in ("spent", "held") for name in names)
        for metric, names in METRICS.items()
    }
    sums["unpriced"] = "account.spent_unpriced"
    # In brackets, or PL/pgSQL takes its first THEN for the end of the IF.
    return "(CASE metrics[i] " + " ".join(f"WHEN '{metric}' THEN {terms}" for metric, terms in sums.items()) + " END)"


def _moves() -> dict[str, str]:
    counted = [(kind, at, name) for kind in ("spent", "held") for at, name in zip(_STEPS, AMOUNTS, strict=True)]
    return {
        "moved": ", ".join(f"{kind}_{name} = {kind}_{name} + p_{kind}[{at}]" for kind, at, name in counted),
        "floored": ", ".join(
            f"spent_{name} = greatest(spent_{name}, floors[6 * i - {6 - at}])"
            for at, name in zip(_STEPS, AMOUNTS, strict=True)
        ),
        "below": " OR ".join(
            f"spent_{name} < floors[6 * i - {6 - at}]" for at, name in zip(_STEPS, AMOUNTS, strict=True)
        ),
        "balance": ", ".join(f"account.{name}" for name in COUNTED),
        "amounts": ", ".join(AMOUNTS),
        "new_amounts": ", ".join(f"p_amounts[{at}]" for at in _STEPS),
        "old_amounts": ", ".join(f"attempt.{name}" for name in AMOUNTS),
        "no_amounts": ", ".join("NULL" for _ in AMOUNTS),
        "narrowing": ", ".join(NARROWING),
        "new_narrowing": ", ".join(f"p_narrowing[{at}]" for at in range(1, len(NARROWING) + 1)),
    }


_LOCK: Final = """
CREATE OR REPLACE FUNCTION {schema}.lock_accounts(p_scopes text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO {schema}.accounts (scope)
        SELECT DISTINCT scope COLLATE "C" FROM unnest(p_scopes) AS scope ORDER BY 1 ON CONFLICT DO NOTHING;
    PERFORM 1 FROM {schema}.accounts WHERE scope = ANY (p_scopes) ORDER BY scope FOR NO KEY UPDATE;
END $$;
"""

_MOVE: Final = """
CREATE OR REPLACE FUNCTION {schema}.move(p_scopes text[], p_spent bigint[], p_held bigint[])
RETURNS void LANGUAGE sql AS $$
    UPDATE {schema}.accounts SET {moved} WHERE scope = ANY (p_scopes);
$$;
"""

_HOLD: Final = """
CREATE OR REPLACE FUNCTION {schema}.hold(
    p_id text, p_call text, p_scopes text[], p_worst bigint[], p_lease double precision, p_now double precision,
    p_only_known boolean, claimed text[], metrics text[], rooms bigint[], floored text[], floors bigint[],
    OUT answer text, OUT call text, OUT expires double precision, OUT balances bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
    account record;
    attempt record;
BEGIN
    SELECT a.state, a.call, a.expires INTO attempt FROM {schema}.attempts a WHERE a.id = p_id;
    IF FOUND THEN
        answer := attempt.state; call := attempt.call; expires := attempt.expires;
        RETURN;
    END IF;
    IF p_only_known THEN
        answer := 'unknown';
        RETURN;
    END IF;
    PERFORM {schema}.lock_accounts(p_scopes);
    FOR i IN 1 .. cardinality(floored) LOOP
        UPDATE {schema}.accounts SET {floored} WHERE scope = floored[i] AND ({below});
    END LOOP;
    answer := 'new';
    balances := ARRAY[]::bigint[];
    FOR account IN SELECT * FROM {schema}.accounts WHERE scope = ANY (p_scopes) ORDER BY scope LOOP
        balances := balances || ARRAY[{balance}];
        FOR i IN 1 .. cardinality(claimed) LOOP
            IF claimed[i] = account.scope AND {checks} > rooms[i] THEN
                answer := 'refused';
            END IF;
        END LOOP;
    END LOOP;
    IF answer = 'refused' THEN
        RETURN;
    END IF;
    expires := coalesce(p_now, extract(epoch FROM clock_timestamp())) + p_lease;
    INSERT INTO {schema}.attempts (id, state, call, held_in, worst, expires)
        VALUES (p_id, 'held', p_call, p_scopes, p_worst, hold.expires) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM {schema}.move(p_scopes, ARRAY[0, 0, 0, 0, 0, 0], p_worst);
        RETURN;
    END IF;
    SELECT a.state, a.call, a.expires INTO attempt FROM {schema}.attempts a WHERE a.id = p_id;
    answer := attempt.state; call := attempt.call; expires := attempt.expires;
END $$;
"""

_SETTLE: Final = """
CREATE OR REPLACE FUNCTION {schema}.settle(
    p_id text, p_state text, p_charge text, p_scopes text[], p_amounts bigint[], p_narrowing text[],
    p_time double precision, p_expired double precision,
    OUT answer text, OUT charge text, OUT freed text[]
) LANGUAGE plpgsql AS $$
DECLARE
    attempt record;
BEGIN
    IF p_expired IS NULL THEN
        INSERT INTO {schema}.attempts (id, state) VALUES (p_id, 'new') ON CONFLICT DO NOTHING;
    END IF;
    SELECT * INTO attempt FROM {schema}.attempts a WHERE a.id = p_id FOR UPDATE;
    IF attempt.state = 'charged' OR p_expired IS NOT NULL AND
        (NOT FOUND OR attempt.state <> 'held' OR attempt.expires > p_expired) THEN
        answer := 'charged'; charge := attempt.charge;
        RETURN;
    END IF;
    freed := CASE attempt.state WHEN 'held' THEN attempt.held_in WHEN 'assumed' THEN attempt.scopes END;
    PERFORM {schema}.lock_accounts(p_scopes || coalesce(freed, ARRAY[]::text[]));
    IF attempt.state = 'held' THEN
        PERFORM {schema}.move(attempt.held_in, ARRAY[0, 0, 0, 0, 0, 0], {schema}.negated(attempt.worst));
    ELSIF attempt.state = 'assumed' THEN
        PERFORM {schema}.move(
            attempt.scopes, {schema}.negated(ARRAY[{old_amounts}]), ARRAY[0, 0, 0, 0, 0, 0]);
    END IF;
    PERFORM {schema}.move(p_scopes, p_amounts, ARRAY[0, 0, 0, 0, 0, 0]);
    UPDATE {schema}.attempts SET (state, expires, charge, scopes, {amounts}, {narrowing}, time)
        = ROW (p_state, NULL, p_charge, p_scopes, {new_amounts}, {new_narrowing}, p_time) WHERE id = p_id;
    answer := 'new';
END $$;
"""

_RELEASE: Final = """
CREATE OR REPLACE FUNCTION {schema}.negated(p_amounts bigint[]) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
    SELECT array_agg(-amount ORDER BY at) FROM unnest(p_amounts) WITH ORDINALITY AS one (amount, at);
$$;
CREATE OR REPLACE FUNCTION {schema}.release(p_id text, OUT freed text[]) LANGUAGE plpgsql AS $$
DECLARE
    attempt record;
BEGIN
    SELECT * INTO attempt FROM {schema}.attempts a WHERE a.id = p_id FOR UPDATE;
    IF NOT FOUND OR attempt.state NOT IN ('held', 'assumed') THEN
        RETURN;
    END IF;
    freed := CASE attempt.state WHEN 'held' THEN attempt.held_in ELSE attempt.scopes END;
    PERFORM {schema}.lock_accounts(freed);
    IF attempt.state = 'held' THEN
        PERFORM {schema}.move(freed, ARRAY[0, 0, 0, 0, 0, 0], {schema}.negated(attempt.worst));
    ELSE
        PERFORM {schema}.move(freed, {schema}.negated(ARRAY[{old_amounts}]), ARRAY[0, 0, 0, 0, 0, 0]);
    END IF;
    UPDATE {schema}.attempts SET (state, expires, charge, scopes, {amounts})
        = ROW ('released', NULL, NULL, NULL, {no_amounts}) WHERE id = p_id;
END $$;
"""
