-- wrk's requests: the method from the command line, and the tenant's items in turn.
-- The order is the same in every run and for every side.
local items, number = tonumber(os.getenv("BENCH_ITEMS")), 0

function init(arguments)
  wrk.method = arguments[1]
end

function request()
  number = (number * 21 + 17) % items
  return wrk.format(nil, "/items/" .. (number + 1))
end
