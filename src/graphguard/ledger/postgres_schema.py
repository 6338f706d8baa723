"""What a `PostgresLedger` keeps in the database: tables, and functions that do each step in one round trip."""

from __future__ import annotations

from typing import Final

from graphguard.ledger.queries import STEP
from graphguard.ledger.records import AMOUNTS, NARROWING

__all__ = ["COUNTED", "METRICS", "VERSION", "functions", "tables", "upgrade"]

VERSION: Final = 2

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

_POSITIONS: Final = range(1, len(AMOUNTS) + 1)

_NEW_IN_2: Final = """
    CREATE INDEX ON {schema}.attempts (time) WHERE state <> 'held';
    CREATE INDEX ON {schema}.attempts ("user") WHERE "user" IS NOT NULL;
"""

_FROM_1: Final = """
    ALTER TABLE {schema}.version ADD COLUMN pruned double precision NOT NULL DEFAULT 0;
    ALTER TABLE {schema}.attempts ADD COLUMN "user" text, ADD COLUMN waited double precision;
    UPDATE {schema}.attempts SET time = extract(epoch FROM clock_timestamp()) WHERE state = 'released';
    DROP FUNCTION {schema}.release(text);
"""

_STEPS: Final = {1: (_FROM_1, _NEW_IN_2)}


def upgrade(schema: str, version: int) -> str:
    """From an older version's tables to these; what that didn't know of its attempts stays unknown."""
    steps = (part for step in range(version, VERSION) for part in _STEPS[step])
    return "".join(part.format(schema=schema) for part in steps)


def tables(schema: str) -> str:
    """The tables; `schema` is quoted already."""
    return f"""
    -- pruned: up to when attempts that are over have been forgotten.
    CREATE TABLE {schema}.version (version integer NOT NULL, pruned double precision NOT NULL DEFAULT 0);
    CREATE TABLE {schema}.accounts (
        scope text PRIMARY KEY COLLATE "C",
        {", ".join(f"{name} bigint NOT NULL DEFAULT 0" for name in COUNTED)}
    ) WITH (fillfactor = 50);
    -- One row an attempt, from its hold to its charge. state is held, charged, assumed or released; or final, a
    -- charge that nothing replaces any more. time is that of the hold, then that of the end.
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
        {", ".join(f'"{name}" text' for name in NARROWING)},
        time double precision,
        waited double precision
    ) WITH (fillfactor = 70);
    CREATE INDEX ON {schema}.attempts (expires) WHERE state = 'held';
    CREATE INDEX ON {schema}.attempts (thread) WHERE thread IS NOT NULL;
    {_NEW_IN_2.format(schema=schema)}
    """


def functions(schema: str) -> str:
    """The functions; `schema` is quoted already.

    Accounts are locked in the order of their names and in no other, and always after the attempt's own row:
    so nobody waits in a circle (facts.md: 43 deadlocks in 3 s without the order, none with it). Accounts that
    are missing are made before any is locked, in the same order.
    """
    arguments = {"schema": schema, "checks": _checks(), **_moves()}
    return "".join(part.format(**arguments) for part in (_LOCK, _HOLD, _SETTLE, _RELEASE, _PRUNE))


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
    numbered = list(zip(_POSITIONS, AMOUNTS, strict=True))

    def each(form: str) -> str:
        return ", ".join(form.format(name=name, at=at, back=6 - at) for at, name in numbered)

    return {
        "hold_worst": each("held_{name} = held_{name} + p_worst[{at}]"),
        "give_back": each("held_{name} = held_{name} - attempt.worst[{at}]"),
        "spend": each("spent_{name} = spent_{name} + p_amounts[{at}]"),
        "take_back": each("spent_{name} = spent_{name} - attempt.{name}"),
        "floored": each("spent_{name} = greatest(spent_{name}, floors[6 * i - {back}])"),
        "below": each("spent_{name} < floors[6 * i - {back}]").replace(", ", " OR "),
        "balance": ", ".join(f"account.{name}" for name in COUNTED),
        "amounts": ", ".join(AMOUNTS),
        "new_amounts": each("p_amounts[{at}]"),
        "no_amounts": each("NULL"),
        "take_out": each("spent_{name} = spent_{name} - gone.{name}"),
        "gone": each("sum(a.{name}) AS {name}"),
        "empty": " AND ".join(f"{name} = 0" for name in COUNTED),
        "step": STEP,
        "narrowing": ", ".join(f'"{name}"' for name in NARROWING),
        "new_narrowing": ", ".join(f"p_narrowing[{at}]" for at in range(1, len(NARROWING) + 1)),
    }


# One account needs no order: whoever changes it locks it.
_LOCK: Final = """
CREATE OR REPLACE FUNCTION {schema}.lock_accounts(p_scopes text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    locked bigint;
BEGIN
    IF cardinality(p_scopes) = 1 THEN
        PERFORM 1 FROM {schema}.accounts WHERE scope = p_scopes[1] FOR NO KEY UPDATE;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    LOOP
        INSERT INTO {schema}.accounts (scope)
            SELECT DISTINCT scope COLLATE "C" FROM unnest(p_scopes) AS scope ORDER BY 1 ON CONFLICT DO NOTHING;
        PERFORM 1 FROM {schema}.accounts WHERE scope = ANY (p_scopes) ORDER BY scope FOR NO KEY UPDATE;
        GET DIAGNOSTICS locked = ROW_COUNT;
        -- One that was closed between the two statements is made again.
        EXIT WHEN locked = (SELECT count(DISTINCT scope) FROM unnest(p_scopes) AS scope);
    END LOOP;
END $$;
"""

_HOLD: Final = """
CREATE OR REPLACE FUNCTION {schema}.hold(
    p_id text, p_call text, p_scopes text[], p_worst bigint[], p_lease double precision, p_now double precision,
    p_only_known boolean, claimed text[], metrics text[], rooms bigint[], floored text[], floors bigint[],
    OUT answer text, OUT call text, OUT expires double precision, OUT balances bigint[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
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
    balances := NULL;
    expires := coalesce(p_now, extract(epoch FROM clock_timestamp())) + p_lease;
    INSERT INTO {schema}.attempts (id, state, call, held_in, worst, expires, time)
        VALUES (p_id, 'held', p_call, p_scopes, p_worst, hold.expires, hold.expires - p_lease) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        UPDATE {schema}.accounts SET {hold_worst} WHERE scope = ANY (p_scopes);
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
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    attempt record;
BEGIN
    SELECT * INTO attempt FROM {schema}.attempts a WHERE a.id = p_id FOR UPDATE;
    IF NOT FOUND AND p_expired IS NULL THEN
        INSERT INTO {schema}.attempts (id, state) VALUES (p_id, 'new') ON CONFLICT DO NOTHING;
        SELECT * INTO attempt FROM {schema}.attempts a WHERE a.id = p_id FOR UPDATE;
    END IF;
    IF attempt.state IN ('charged', 'final') OR p_expired IS NOT NULL AND
        (attempt.state IS DISTINCT FROM 'held' OR attempt.expires > p_expired) THEN
        answer := 'charged'; charge := attempt.charge;
        RETURN;
    END IF;
    answer := 'new';
    UPDATE {schema}.attempts SET (state, expires, charge, scopes, {amounts}, {narrowing}, time)
        = ROW (p_state, NULL, p_charge, p_scopes, {new_amounts}, {new_narrowing}, p_time) WHERE id = p_id;
    IF attempt.state = 'held' AND attempt.held_in = p_scopes AND cardinality(p_scopes) = 1 THEN
        freed := p_scopes;
        UPDATE {schema}.accounts SET {spend}, {give_back} WHERE scope = p_scopes[1];
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    freed := CASE attempt.state WHEN 'held' THEN attempt.held_in WHEN 'assumed' THEN attempt.scopes END;
    PERFORM {schema}.lock_accounts(p_scopes || freed);
    IF attempt.state = 'held' THEN
        UPDATE {schema}.accounts SET {give_back} WHERE scope = ANY (attempt.held_in);
    ELSIF attempt.state = 'assumed' THEN
        UPDATE {schema}.accounts SET {take_back} WHERE scope = ANY (attempt.scopes);
    END IF;
    UPDATE {schema}.accounts SET {spend} WHERE scope = ANY (p_scopes);
END $$;
"""

_RELEASE: Final = """
CREATE OR REPLACE FUNCTION {schema}.release(
    p_id text, p_now double precision DEFAULT NULL, OUT freed text[]
) LANGUAGE plpgsql AS $$
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
        UPDATE {schema}.accounts SET {give_back} WHERE scope = ANY (freed);
    ELSE
        UPDATE {schema}.accounts SET {take_back} WHERE scope = ANY (freed);
    END IF;
    UPDATE {schema}.attempts SET (state, expires, time, charge, scopes, {amounts})
        = ROW ('released', NULL, coalesce(p_now, extract(epoch FROM clock_timestamp())), NULL, NULL, {no_amounts})
        WHERE id = p_id;
END $$;
"""

# A charge stays with its sums, and is final. What it counts in the account of its superstep is taken out of it, and
# an account that counts nothing is closed. A released attempt is forgotten whole. One process does it at a time.
_PRUNE: Final = """
CREATE OR REPLACE FUNCTION {schema}.prune(
    p_now double precision, p_keep double precision, p_most integer
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    mark double precision;
    ids text[];
    steps text[];
BEGIN
    SELECT pruned INTO mark FROM {schema}.version FOR UPDATE SKIP LOCKED;
    SELECT array_agg(id), max(time) INTO ids, mark FROM (
        SELECT a.id, a.time FROM {schema}.attempts a
        WHERE a.state <> 'held' AND a.state <> 'final' AND a.time >= mark
            AND a.time < coalesce(p_now, extract(epoch FROM clock_timestamp())) - p_keep
        ORDER BY a.time LIMIT p_most FOR UPDATE
    ) AS over;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    steps := ARRAY(
        SELECT DISTINCT place COLLATE "C" FROM {schema}.attempts a, unnest(a.scopes || a.held_in) AS place
        WHERE a.id = ANY (ids) AND starts_with(place, '{step}') ORDER BY 1);
    PERFORM 1 FROM {schema}.accounts WHERE scope = ANY (steps) ORDER BY scope FOR UPDATE;
    UPDATE {schema}.accounts SET {take_out} FROM (
        SELECT place, {gone} FROM {schema}.attempts a, unnest(a.scopes) AS place
        WHERE a.id = ANY (ids) AND a.charge IS NOT NULL AND starts_with(place, '{step}') GROUP BY place
    ) AS gone WHERE scope = gone.place;
    DELETE FROM {schema}.accounts WHERE scope = ANY (steps) AND {empty};
    DELETE FROM {schema}.attempts WHERE id = ANY (ids) AND state = 'released';
    UPDATE {schema}.attempts SET state = 'final', call = NULL, held_in = NULL, worst = NULL WHERE id = ANY (ids);
    UPDATE {schema}.version SET pruned = mark;
    RETURN cardinality(ids);
END $$;
"""
