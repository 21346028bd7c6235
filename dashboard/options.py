"""Streamlit's options as data, set before it starts, and the checks without which it does not start.

Nothing is read from or written to a `.streamlit` folder: the sign-in secrets exist in memory only.
Source: design, dashboard section 4; parts section 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamlit import config

from remit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashboard.settings import DashboardSettings

SERVER: Mapping[str, Any] = {
    "server.headless": True,
    "server.enableXsrfProtection": True,
    "server.enableCORS": True,
    "server.enableStaticServing": False,
    # An agent that may press this app's buttons would approve itself.
    "server.enableAgentApi": False,
    # Any client could then name itself: identity comes from the signed cookie alone.
    "server.trustedUserHeaders": {},
    "server.disconnectedSessionTTL": 120,
    "server.websocketPingInterval": 20,
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "browser.gatherUsageStats": False,
    # Streamlit's default lists its cloud, whose pages could then steer this one by messages.
    "client.allowedOrigins": [],
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "client.toolbarMode": "minimal",
    "client.showSidebarNavigation": False,
    "runner.magicEnabled": False,
    "secrets.files": [],
    "logger.level": "warning",
}
LIGHT = {
    "primaryColor": "#1f5fbf",
    "backgroundColor": "#ffffff",
    "secondaryBackgroundColor": "#f4f6f8",
    "codeBackgroundColor": "#f4f6f8",
    "codeTextColor": "#1c2530",
    "textColor": "#1c2530",
    "linkColor": "#1f5fbf",
    "borderColor": "#d5dbe2",
    "redColor": "#b3261e",
    "orangeColor": "#9a4f00",
    "yellowColor": "#7a5d00",
    "greenColor": "#1d6b3f",
    "blueColor": "#1f5fbf",
    "greenTextColor": "#1d6b3f",
    "redTextColor": "#b3261e",
    "orangeTextColor": "#8a4700",
    "grayTextColor": "#59636f",
    "grayColor": "#59636f",
    "dataframeBorderColor": "#d5dbe2",
    "dataframeHeaderBackgroundColor": "#eef1f4",
    "chartCategoricalColors": ["#1f5fbf", "#8a6fc9", "#7b8794", "#2f7d5b", "#9a4f00", "#b3261e"],
}
DARK = {
    "primaryColor": "#3f7fe0",
    "backgroundColor": "#12161b",
    "secondaryBackgroundColor": "#1b2128",
    "codeBackgroundColor": "#1b2128",
    "codeTextColor": "#dde3ea",
    "textColor": "#dde3ea",
    "linkColor": "#83b0f5",
    "borderColor": "#323b46",
    "redColor": "#f28b82",
    "orangeColor": "#f0a765",
    "yellowColor": "#e0c060",
    "greenColor": "#74c69d",
    "blueColor": "#83b0f5",
    "greenTextColor": "#74c69d",
    "redTextColor": "#f28b82",
    "orangeTextColor": "#f0a765",
    "grayTextColor": "#9aa5b1",
    "grayColor": "#9aa5b1",
    "dataframeBorderColor": "#323b46",
    "dataframeHeaderBackgroundColor": "#1b2128",
    "chartCategoricalColors": ["#6ea0ee", "#b09ae0", "#9aa5b1", "#74c69d", "#f0a765", "#f28b82"],
}
THEME: Mapping[str, Any] = {
    "theme.baseFontSize": 14,
    "theme.baseRadius": "5px",
    "theme.buttonRadius": "5px",
    "theme.codeFontSize": "13px",
    "theme.headingFontSizes": ["1.5rem", "1.15rem", "1rem", "1rem", "0.9rem", "0.9rem"],
    "theme.headingFontWeights": [600, 600, 600, 600, 600, 600],
    "theme.metricValueFontSize": "1.4rem",
    "theme.metricValueFontWeight": 600,
    "theme.showWidgetBorder": True,
    "theme.paddingTop": "0.75rem",
    "theme.paddingBottom": "2rem",
    **{f"theme.light.{name}": value for name, value in LIGHT.items()},
    **{f"theme.dark.{name}": value for name, value in DARK.items()},
}
CALLBACK = "/oauth2callback"


def apply(settings: DashboardSettings) -> None:
    """Set every option, over whatever configuration files this machine happens to have."""
    host = urlsplit(settings.origin).hostname or "localhost"
    own = {
        "server.address": settings.host,
        "server.port": settings.port,
        "server.cookieSecret": settings.cookie_key,
        "server.corsAllowedOrigins": [settings.origin],
        "server.allowedHosts": [host],
        "browser.serverAddress": host,
    }
    for name, value in {**SERVER, **THEME, **own}.items():
        config.set_option(name, value)


def sign_in_secrets(settings: DashboardSettings) -> dict[str, Any]:
    """Return Streamlit's `[auth]` section.

    `prompt=login`, because Streamlit's own `select_account` is refused by strict providers, silently.
    """
    return {
        "auth": {
            "redirect_uri": f"{settings.origin}{CALLBACK}",
            "cookie_secret": settings.cookie_key,
            "client_id": settings.oidc_client_id,
            "client_secret": settings.client_secret,
            "server_metadata_url": f"{settings.oidc_issuer.rstrip('/')}/.well-known/openid-configuration",
            "expose_tokens": "id",
            "client_kwargs": {"scope": "openid profile email", "prompt": "login"},
        }
    }


def check() -> None:
    """Refuse to start with an option that would let someone act as somebody else.

    Raises:
        ConfigurationError: names the option, what was found and what is needed.

    """
    needed = {"server.enableAgentApi": False, "server.enableXsrfProtection": True, "server.enableCORS": True}
    for name, value in needed.items():
        if config.get_option(name) is not value:
            raise ConfigurationError(
                f"{name} is {config.get_option(name)!r} and must be {value!r}; remove the override"
            )
    if config.get_option("server.trustedUserHeaders"):
        raise ConfigurationError("server.trustedUserHeaders must be empty: a header would name the person")
    if not config.get_option("server.allowedHosts"):
        raise ConfigurationError("server.allowedHosts is empty, which accepts any Host; set REMIT_DASHBOARD_PUBLIC_URL")
