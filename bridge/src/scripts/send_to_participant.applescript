-- Sends one text to one address over one service of this account.
-- Arguments: service (iMessage, RCS or SMS), address (E.164 or e-mail), text.
-- Values come only through argv: nothing that a tenant wrote is ever part of a script.
on run argv
	set serviceName to item 1 of argv
	set theAddress to item 2 of argv
	set theText to item 3 of argv
	tell application "Messages"
		if serviceName is "iMessage" then
			set theAccount to 1st account whose service type = iMessage
		else if serviceName is "RCS" then
			set theAccount to 1st account whose service type = RCS
		else
			set theAccount to 1st account whose service type = SMS
		end if
		send theText to participant theAddress of theAccount
	end tell
end run
