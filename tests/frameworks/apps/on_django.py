"""The application on Django: settings, URLs, views and `asgi.py` in one file."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from asgi_datasource import DataError, current_session
from tests.frameworks.apps import CONFIG, INSERT, ORIGIN, ORPHAN, items, kept, roles, text_of, use_late

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "testserver"],
    CORS_ALLOWED_ORIGINS=[ORIGIN],
    CORS_ALLOW_HEADERS=["x-tenant"],
    DATASOURCE=CONFIG,
    INSTALLED_APPS=["asgi_datasource.django", "corsheaders"],
    MIDDLEWARE=[
        "asgi_datasource.django.DataErrorMiddleware",
        "corsheaders.middleware.CorsMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        f"{__name__}.OwnErrors",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of the tests",
    USE_TZ=True,
)


class OwnErrors:
    """The application's own middleware for errors."""

    async_capable = sync_capable = True

    def __init__(self, get_response: Any) -> None:
        from asgiref.sync import markcoroutinefunction

        self._get_response = get_response
        markcoroutinefunction(self)  # type: ignore[type-var]

    async def __call__(self, request: HttpRequest) -> Any:
        return await self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if not isinstance(error, DataError):
            return None
        return HttpResponse(text_of(error), status=error.http_status, content_type="text/plain")


@csrf_exempt
async def orders(request: HttpRequest) -> HttpResponse:
    if request.method == "GET":
        return JsonResponse(await items(current_session()), safe=False)
    await current_session().execute(INSERT, [request.GET["item"]])
    return HttpResponse(status=201)


@csrf_exempt
async def orphans(request: HttpRequest) -> HttpResponse:
    await current_session().execute(ORPHAN)
    return HttpResponse(status=201)


@csrf_exempt
async def pin(request: HttpRequest) -> HttpResponse:
    return JsonResponse(await roles(current_session(), request.GET["item"]), safe=False)


@csrf_exempt
def place_sync(request: HttpRequest) -> HttpResponse:
    current_session().blocking.execute(INSERT, [request.GET["item"]])
    return HttpResponse(status=201)


@csrf_exempt
async def keep(request: HttpRequest) -> HttpResponse:
    kept.append(current_session())
    return HttpResponse()


async def late(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await use_late())


urlpatterns = [
    path("orders", orders),
    path("orphans", orphans),
    path("pin", pin),
    path("sync", place_sync),
    path("keep", keep),
    path("late", late),
]

from asgi_datasource.django import get_asgi_application  # noqa: E402 - the settings come first

app = get_asgi_application()
