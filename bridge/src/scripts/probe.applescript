-- Asks Messages the state of its iMessage account: the same road as a send, without sending.
-- Prints "connected", "connecting", "disconnected" or "disconnecting".
on run argv
	with timeout of 5 seconds
		tell application "Messages"
			set theAccount to 1st account whose service type = iMessage
			return (connection status of theAccount) as text
		end tell
	end timeout
end run
