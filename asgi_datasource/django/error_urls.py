"""The URL configuration of a call that renders an error: its view raises the error, whatever the path."""

from __future__ import annotations

from typing import Any, NoReturn, cast

from django.http import HttpRequest
from django.urls import re_path, set_urlconf

from ..asgi.framework_errors import error_of


async def raise_error(request: HttpRequest) -> NoReturn:
    """Raise the error of the call."""
    # The page that a handler renders reverses the URLs of the project.
    del request.urlconf
    set_urlconf(None)
    raise cast("BaseException", error_of(cast("Any", request).scope))


# Middlewares would refuse another view before it is called.
raise_error.csrf_exempt = True  # type: ignore[attr-defined]
raise_error.login_required = False  # type: ignore[attr-defined]

urlpatterns = [re_path("", raise_error)]
