-- Asks Messages the state of one of its accounts, without starting Messages by the question.
-- Arguments: service (iMessage, RCS or SMS).
-- Prints "not running", "connected", "connecting", "disconnected" or "disconnecting".
on run argv
	set serviceName to item 1 of argv
	if application "Messages" is not running then
		return "not running"
	end if
	with timeout of 5 seconds
		tell application "Messages"
			if serviceName is "iMessage" then
				set theAccount to 1st account whose service type = iMessage
			else if serviceName is "RCS" then
				set theAccount to 1st account whose service type = RCS
			else
				set theAccount to 1st account whose service type = SMS
			end if
			return (connection status of theAccount) as text
		end tell
	end timeout
end run
