"""Test patterns that scanners look for, in pieces: in one piece they would have every scanner eat this repository."""

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-" + b"ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-" + b"ANTI-UBE-TEST-EMAIL*C.34X"
METASPLOIT = b"dex\n035\0" + bytes(40) + b"Lcom/metasploit/" + b"stage/Payload;"
MIRAI = b"\x7fELF" + bytes(60) + b"/bin/busybox " + b"MIRAI"
WANNACRY = b"MZ" + bytes(60) + b"http://www.iuqerfsodp9ifjaposdfjh" + b"gosurijfaewrwergwea.com"
