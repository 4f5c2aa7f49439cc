-- Asks Messages to quit, without starting it first.
on run argv
	if application "Messages" is not running then
		return "not running"
	end if
	with timeout of 5 seconds
		tell application "Messages"
			quit
		end tell
	end timeout
end run
