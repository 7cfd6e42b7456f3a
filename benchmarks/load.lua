-- wrk's side of the load: the method of the command line, an item of the tenant by turns.
-- The same order in every run, for every side.
local items, number = tonumber(os.getenv("BENCH_ITEMS")), 0

function init(arguments)
  wrk.method = arguments[1]
end

function request()
  number = (number * 21 + 17) % items
  return wrk.format(nil, "/items/" .. (number + 1))
end
