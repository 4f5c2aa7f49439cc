-- Asks Messages something that it answers from memory, without starting it by the question: a `tell` would.
-- Prints "not running", or how many accounts there are.
on run argv
	if application "Messages" is not running then
		return "not running"
	end if
	with timeout of 5 seconds
		tell application "Messages"
			return (count accounts) as text
		end tell
	end timeout
end run
