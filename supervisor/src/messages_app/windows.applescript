-- Closes the windows of Messages, which goes on running, without starting it.
on run argv
	if application "Messages" is not running then
		return "not running"
	end if
	with timeout of 5 seconds
		tell application "Messages"
			close windows
		end tell
	end timeout
end run
