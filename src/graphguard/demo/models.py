"""A live model for the demo, named as `provider:model`, made by LangChain's `init_chat_model`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphguard.demo.mistakes import WrongUse

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

__all__ = ["OUTPUT_CAP", "live_model"]

OUTPUT_CAP = 1_000
"""The output cap of a live model, in tokens, so that the most a call can cost is known beforehand."""

HOW = "pass provider:name, such as openai:gpt-4o-mini or anthropic:claude-haiku-4-5"


def live_model(name: str) -> BaseChatModel:
    """Give a real chat model.

    Args:
        name: `provider:model`, as `init_chat_model` takes it.

    Raises:
        WrongUse: no such provider, a package that isn't installed, or no key.
    """
    provider, _, model = name.partition(":")
    if not provider or not model:
        raise WrongUse(f"--model {name!r} names no provider; {HOW}")
    try:
        from langchain.chat_models import init_chat_model  # noqa: PLC0415 - an extra, needed here alone
    except ImportError as error:
        raise WrongUse("--model needs langchain; install it: pip install 'graphguard[langchain]'") from error
    try:
        return init_chat_model(model, model_provider=provider, max_tokens=OUTPUT_CAP)
    except ImportError as error:
        raise WrongUse(f"--model {name!r}: {first_sentence(error)}") from error
    except ValueError as error:
        # Pydantic's complaints about settings, a missing key among them, are ValueErrors too.
        if str(error).startswith("Unsupported "):
            raise WrongUse(f"--model {name!r}: LangChain knows no provider {provider!r}; {HOW}") from error
        raise WrongUse(f"--model {name!r} can't be set up: {first_sentence(error)}") from error
    except Exception as error:  # each provider's package has an error of its own for a missing key
        raise WrongUse(f"--model {name!r} can't be set up: {first_sentence(error)}") from error


def first_sentence(error: BaseException) -> str:
    """Give the beginning of somebody else's error text, in one line that ends without a full stop."""
    text = " ".join(str(error).split()).partition(" [type=")[0] or type(error).__name__
    return (text if len(text) <= 200 else f"{text[:197]}...").rstrip(".")  # noqa: PLR2004 - about two lines
