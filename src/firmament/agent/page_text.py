"""The words of the owner's page, in the languages of core/offer.py; English where there are none."""

from __future__ import annotations

from typing import Final

from firmament.core.offer import FALLBACK, choose_language

# fmt: off
WORDS: Final[dict[str, dict[str, str]]] = {
    "en": {
        "runs": "Runs {version}", "none": "No update is in hand.", "progress": "Progress", "history": "History",
        "now": "Update now", "tonight": "Tonight", "later": "Ask me later", "skip": "Skip this version",
        "withdraw": "Take my yes back", "code": "Code shown on the device", "auto": "Automatic updates",
        "opt-out": "Switch automatic updates off", "opt-in": "Switch automatic updates on",
        "is-out": "Automatic updates are off.", "is-in": "Updates follow the device's policy.",
        "risk": "Switched off, security updates no longer install by themselves: known holes stay open until you "
                "install them. You will still be told about updates.",
        "said": "Your answer was taken.", "wrong-code": "That is not the code that the device shows.",
        "locked": "Too many wrong codes. Read the new code off the device in a minute.",
        "refused": "This cannot be answered now.", "limit": "This security update cannot be postponed any more.",
        "back": "The device restarts; back in about {minutes} min.", "silence": "Nothing is installed until you agree.",
        "check": "Check", "consent": "Your answer", "download": "Download", "verify": "Verify",
        "restart": "Restart", "health": "Health check", "confirm": "Kept",
        "done": "done", "doing": "now", "todo": "to do", "failed": "failed",
    },
    "de": {
        "runs": "Läuft mit {version}", "none": "Es liegt kein Update vor.", "progress": "Fortschritt",
        "history": "Verlauf", "now": "Jetzt aktualisieren", "tonight": "Heute Nacht", "later": "Später fragen",
        "skip": "Diese Version überspringen", "withdraw": "Zusage zurücknehmen", "code": "Code auf dem Gerät",
        "auto": "Automatische Updates", "opt-out": "Automatische Updates ausschalten",
        "opt-in": "Automatische Updates einschalten", "is-out": "Automatische Updates sind aus.",
        "is-in": "Updates folgen den Regeln des Geräts.",
        "risk": "Sicherheits-Updates kommen dann nicht mehr von selbst: bekannte Lücken bleiben offen, bis Sie sie "
                "einspielen. Über Updates werden Sie weiter informiert.",
        "said": "Ihre Antwort wurde übernommen.", "wrong-code": "Das ist nicht der Code, den das Gerät zeigt.",
        "locked": "Zu viele falsche Codes. Lesen Sie in einer Minute den neuen Code ab.",
        "refused": "Das kann jetzt nicht beantwortet werden.",
        "limit": "Dieses Sicherheits-Update kann nicht weiter verschoben werden.",
        "back": "Das Gerät startet neu; in etwa {minutes} Min. zurück.",
        "silence": "Ohne Ihre Zusage wird nichts installiert.",
        "check": "Suchen", "consent": "Ihre Antwort", "download": "Laden", "verify": "Prüfen",
        "restart": "Neustart", "health": "Funktionsprüfung", "confirm": "Behalten",
        "done": "fertig", "doing": "jetzt", "todo": "offen", "failed": "misslungen",
    },
    "fr": {
        "runs": "Version {version}", "none": "Aucune mise à jour.", "progress": "Avancement", "history": "Historique",
        "now": "Mettre à jour", "tonight": "Cette nuit", "later": "Plus tard", "skip": "Ignorer cette version",
        "withdraw": "Retirer mon accord", "code": "Code affiché par l'appareil", "auto": "Mises à jour automatiques",
        "opt-out": "Désactiver les mises à jour automatiques", "opt-in": "Activer les mises à jour automatiques",
        "is-out": "Les mises à jour automatiques sont désactivées.", "is-in": "Les mises à jour suivent les règles.",
        "risk": "Désactivées, même celles de sécurité ne s'installent plus seules : les failles connues restent "
                "ouvertes jusqu'à ce que vous les installiez. Vous resterez informé.",
        "said": "Votre réponse est enregistrée.", "wrong-code": "Ce n'est pas le code affiché par l'appareil.",
        "locked": "Trop de codes faux. Lisez le nouveau code dans une minute.",
        "refused": "Il n'y a rien à répondre maintenant.",
        "limit": "Cette mise à jour de sécurité ne peut plus être reportée.",
        "back": "L'appareil redémarre ; de retour dans environ {minutes} min.",
        "silence": "Rien n'est installé sans votre accord.",
        "check": "Recherche", "consent": "Votre réponse", "download": "Téléchargement", "verify": "Vérification",
        "restart": "Redémarrage", "health": "Contrôle", "confirm": "Conservée",
        "done": "fait", "doing": "en cours", "todo": "à faire", "failed": "échec",
    },
    "pt": {
        "runs": "Versão {version}", "none": "Não há atualização.", "progress": "Progresso", "history": "Histórico",
        "now": "Atualizar agora", "tonight": "Esta noite", "later": "Perguntar mais tarde",
        "skip": "Ignorar esta versão", "withdraw": "Retirar o meu sim", "code": "Código mostrado no aparelho",
        "auto": "Atualizações automáticas", "opt-out": "Desligar atualizações automáticas",
        "opt-in": "Ligar atualizações automáticas", "is-out": "As atualizações automáticas estão desligadas.",
        "is-in": "As atualizações seguem as regras do aparelho.",
        "risk": "Desligadas, nem as de segurança se instalam sozinhas: falhas conhecidas ficam abertas até as "
                "instalar. Continuará a ser informado.",
        "said": "A sua resposta foi registada.", "wrong-code": "Esse não é o código que o aparelho mostra.",
        "locked": "Demasiados códigos errados. Leia o novo código daqui a um minuto.",
        "refused": "Agora não há nada a responder.",
        "limit": "Esta atualização de segurança já não pode ser adiada.",
        "back": "O aparelho reinicia; volta em cerca de {minutes} min.",
        "silence": "Nada é instalado sem o seu acordo.",
        "check": "Procurar", "consent": "A sua resposta", "download": "Transferir", "verify": "Verificar",
        "restart": "Reinício", "health": "Controlo", "confirm": "Mantida",
        "done": "feito", "doing": "agora", "todo": "por fazer", "failed": "falhou",
    },
}
# fmt: on


def words(language: str) -> tuple[str, dict[str, str]]:
    """Return the language taken and its words."""
    taken = choose_language(WORDS, language) or FALLBACK
    return taken, WORDS[taken]
