-- Sends one text or one file: into an existing chat where Messages knows it, else to an address.
-- Arguments: service (iMessage, RCS or SMS), address (E.164 or e-mail; empty for a group), guid of the chat as
-- chat.db holds it (empty where there is none), kind (text or file), the text or the file's path.
-- Values come only through argv: nothing that a tenant wrote is ever part of a script.
-- Returns "unsent file N" or "unsent chat N" where error N came before anything was handed to Messages. An
-- error of `send` itself is not caught: it ends the script with its number, and nothing is tried again.
on run argv
	set serviceName to item 1 of argv
	set theAddress to item 2 of argv
	set theGuid to item 3 of argv
	set theContent to item 5 of argv
	if item 4 of argv is "file" then
		try
			set theContent to (POSIX file theContent) as alias
		on error number theNumber
			return "unsent file " & theNumber
		end try
	end if
	tell application "Messages"
		if theGuid is not "" then
			try
				set theGuid to id of chat id theGuid
			on error number theNumber
				if theAddress is "" then
					return "unsent chat " & theNumber
				end if
				set theGuid to ""
			end try
		end if
		if theGuid is not "" then
			send theContent to chat id theGuid
		else
			if serviceName is "iMessage" then
				set theAccount to 1st account whose service type = iMessage
			else if serviceName is "RCS" then
				set theAccount to 1st account whose service type = RCS
			else
				set theAccount to 1st account whose service type = SMS
			end if
			send theContent to participant theAddress of theAccount
		end if
	end tell
end run
